"""Records of runs compared: tables, figures and the page. Imports no JAX."""
