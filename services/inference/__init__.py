"""Runs versions: cog models in sandboxed environments, compiled engines in the engine host.

Owns no database: only caches below its data directory.
Events in: LeasesGranted, LeaseRevoked, ReplicaRequested.
Events out: WorkerReported, RunsReported (a request), WorkerStopped.
"""
