"""Cog models without a container: a library that knows no service, no gRPC and no NATS.

In the order of use: `config.read_config` and `host.inspect_host` (what a project needs, what this
machine has, and refusals), `schema.extract_schema` (the OpenAPI document, from the source text),
`requirements.read_requirements` and `environment.EnvironmentStore` (the Python environment),
`sandbox.Sandbox.probe` (what confines the processes here), `runner.CogRunner` (the real cog server,
driven over loopback; its events are in `events`, its failures in `errors`).
"""
