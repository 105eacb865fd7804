"""What every HTTP service shares: errors, bodies, authentication, limits and the application itself."""
