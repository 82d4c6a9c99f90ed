from physattn.cli import main

main()
