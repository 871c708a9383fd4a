"""Execution of code: compiling, profiling, exported policies. It never changes the results."""
