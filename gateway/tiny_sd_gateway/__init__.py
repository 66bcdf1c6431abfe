"""REST gateway of Tiny-SD on Triton: the documented API, OpenAI Images, a playground, keys and credits."""
