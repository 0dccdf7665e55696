"""FITS files: single images, extensions, cubes, bands in separate files, planes."""
