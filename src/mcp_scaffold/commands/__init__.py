"""The commands: thin functions that parse, call and print."""
