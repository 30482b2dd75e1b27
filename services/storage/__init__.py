"""Storage: the catalogue of models and versions, accounts' files, and content-addressed blobs.

Tables: models, versions, blob_uploads, files, counted_events.
Events in: reprise.scheduler.v1.predictions.completed (run counts). Events out: none.
"""
