"""An example to change: tools that test an HTTP API, and find out why a call of it fails.

The tools are in `tools`; everything else is plain Python without a server. What `load_openapi` and `ingest_logs` have
read is shared by all clients of this process, and gone when it ends.
"""
