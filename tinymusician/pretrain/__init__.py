"""Making the house band from nothing: its codec, its language models, its CLAP."""
