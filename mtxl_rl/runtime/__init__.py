"""How code is executed: compiling, profiling, exported policies; never what it computes."""
