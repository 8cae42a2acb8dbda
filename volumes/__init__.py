"""Opening and creating volumes (Zarr, HDF5, TIFF) and the geometry of patches; knows no network and no device."""
