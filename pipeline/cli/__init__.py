"""The command line of the engine: run, plan, show, check, status, clean."""
