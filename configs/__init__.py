"""Run configurations: the schema, how one is loaded, and the YAML files that ship."""
