"""Jobs that run on a Ray cluster, one package per capability, and the command line that submits them."""
