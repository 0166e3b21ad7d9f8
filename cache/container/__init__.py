"""The HDF5 file: layout, checksums, reading and writing."""
