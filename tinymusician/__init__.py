"""TinyMusician: make big text-to-music models small, and get them into people's pockets.

The library knows no cluster and no command line; importing it loads nothing.
"""
