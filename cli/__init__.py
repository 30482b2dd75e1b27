"""The command line: starts the mesh, and talks to a gateway as anybody would."""
