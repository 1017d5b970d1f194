"""`emovllm verify`: is what an engine does here, with these settings, what it ought to do?"""
