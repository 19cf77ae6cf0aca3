"""The Prefect server: deployments, automations, runs of the flow."""
