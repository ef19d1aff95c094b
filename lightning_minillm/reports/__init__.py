"""Reports: tables and pictures of results, and the folders of runs that they are read from."""
