"""Import and export of features in the files of other tools."""
