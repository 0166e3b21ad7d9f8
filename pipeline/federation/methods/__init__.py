"""What a federated method is: how reports become one adapter, and what is remembered."""
