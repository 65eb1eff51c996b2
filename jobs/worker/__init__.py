"""What all jobs' workers share: context, resources, Ray Train, actors, metrics."""
