"""Pages and tables of what runs, sweeps and benchmarks found."""
