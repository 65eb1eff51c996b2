"""The command line `tmctl`, one file per noun. Heavy packages are imported by the commands that need them."""
