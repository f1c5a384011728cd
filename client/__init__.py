"""The Flower ClientApp: decodes, trains on the client's own data, encodes."""
