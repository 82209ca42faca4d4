"""Convolutions and norms of many tasks at once on a CPU, in C++: compiled once on each machine, and never needed."""
