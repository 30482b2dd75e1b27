"""The five services of the mesh and the chassis that each process is mounted on."""

import os

# gRPC's fork handlers crash the child when a process is started while calls are under way (seen
# with uvloop, which forks); none of our children uses gRPC before its exec. Read when grpc loads.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
