"""The names that laion-clap imports: none."""
