"""The command line: one file a verb. Reads what the machine says and injects it into the layers below."""
