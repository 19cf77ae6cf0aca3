"""Write a first config for a model and the files that a user has: `resprout init`."""
