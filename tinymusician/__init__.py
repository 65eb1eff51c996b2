"""TinyMusician distils large text-to-music models into small ones that run on phones and in browsers.

The library does not depend on a cluster or a command line; importing this package loads nothing.
"""
