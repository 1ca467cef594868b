"""What benchmarks share: the peers' environment, interleaved timing, peak memory, the machine, the results' files."""
