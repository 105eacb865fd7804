"""Application services are told what concerns them. Spec: Application Service API §Pushing events."""
