"""Federation as every service needs it: who peers are, where they answer, what they sign, and asking them."""
