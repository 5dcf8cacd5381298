// A certified OpenID Connect provider (npm oidc-provider) as the tests run it: people and their claims come
// from a file that is read at every question, keys are new at every start.
import { readFileSync } from 'node:fs';
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const { issuer, port, client, people } = JSON.parse(process.argv[2]);
const { privateKey } = await generateKeyPair('RS256', { extractable: true });

const provider = new Provider(issuer, {
  clients: [client],
  jwks: { keys: [{ ...(await exportJWK(privateKey)), use: 'sig', alg: 'RS256' }] },
  claims: {
    openid: ['sub'],
    profile: ['preferred_username', 'name', 'groups', 'realm_access'],
    email: ['email'],
  },
  pkce: { required: () => true, methods: ['S256'] },
  async findAccount(_context, id) {
    const known = JSON.parse(readFileSync(people, 'utf8'))[id];
    return known && { accountId: id, claims: async () => ({ sub: id, ...known }) };
  },
});
provider.listen(port, '127.0.0.1', () => console.log('ready'));
