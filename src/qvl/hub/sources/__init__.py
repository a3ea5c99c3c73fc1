"""Where models may be downloaded from, each source a module that lists files and says where their bytes are."""
