"""The engine: stages, plans, keys, manifests, the runner, and the processes of a run."""
