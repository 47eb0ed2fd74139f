// How the JavaScript suite is run here: those of its tests that speak to a server, one file at a time.
import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['tests/api/**/*.test.ts', 'tests/sandbox/**/*.test.ts'],
    isolate: true,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    environment: 'node',
    fileParallelism: false,
    setupFiles: ['tests/globalFetchFallback.setup.ts'],
    deps: { interopDefault: true },
    env: { ...process.env },
  },
})
