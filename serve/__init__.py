"""The endpoint: one bundle behind HTTP, on Ray Serve. Plays with the same engine as devices do."""
