"""The only process that speaks HTTP to the outside: tokens, REST and gRPC in front of the mesh.

Tables: accounts, tokens. Events out and in: TokenRevoked.
"""
