"""What the tests share: tiny models and circuits, engines, servers, and what stands for a hub or an API."""
