"""The tools, resources and prompts of this server: one module per subject. Yours: an update never touches them.

Every function in these modules that is decorated with `@tool`, `@resource` or `@prompt` is registered at start-up.
"""
