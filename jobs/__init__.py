"""What runs on a Ray cluster, one file a job, and the command line that submits it."""
