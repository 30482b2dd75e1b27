"""What every service process is mounted on: settings, logs, metrics, traces, gRPC, NATS, database.

Knows no service and no domain word.
"""
