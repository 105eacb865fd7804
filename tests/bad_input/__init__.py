"""Bad input from the specification's own OpenAPI files, against a server in a process of its own."""
