"""The five services of the mesh and the chassis that each process is mounted on."""
