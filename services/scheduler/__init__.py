"""Scheduler: predictions, from admission to settlement; the only writer of a prediction's status.

Tables: predictions (with the outbox of settlements in its columns), prediction_chunks.
Events out: LeasesGranted, LeaseRevoked, ReplicaRequested, PredictionsCompleted.
Events in: WorkerReported, WorkerStopped, RunsReported.

The database is the truth. Decisions are taken in memory by one event loop, committed, and only
then shown: a killed scheduler reads its tables and goes on.
"""
