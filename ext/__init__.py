"""The sources of the native ops, installed with the package so that they can be built later."""
