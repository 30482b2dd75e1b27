"""The command line: starts the mesh, and talks to a gateway as anybody would."""

import os

# gRPC's fork handlers crash the child when a process is started while calls are under way, and
# the supervisor forks while it asks for health. Read when grpc loads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
