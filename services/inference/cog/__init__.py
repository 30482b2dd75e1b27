"""Cog models without a container: project checks, schema, environment, sandbox and the real cog
server.

`config.read_config` reads cog.yaml, `schema.extract_schema` derives the OpenAPI document from the
source text, `environment.EnvironmentStore` builds the interpreter environment, `sandbox.Sandbox`
confines the processes and `runner.CogRunner` starts the server and drives predictions. Nothing
here knows a service, gRPC or NATS.
"""
